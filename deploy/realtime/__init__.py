"""What must never wait: exchange between processes, limits, the safety filter, interpolation, the control loop."""
