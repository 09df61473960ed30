"""How does a policy run on a real arm? Drivers, the real-time loop, cameras, recorder, and an emulator to test on."""
