"""A Franka arm and hand in software: the Franka Control Interface over loopback, the task's own scene behind it."""
