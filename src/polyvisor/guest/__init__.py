"""What runs inside guests for us: programs written in the description language, compiled for the guest's CPU."""
