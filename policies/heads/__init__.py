"""Policy heads: from features and proprioception to actions."""
