"""The policy on one computer, the arm on another: newest records over TCP, stamps in the robot's time."""
