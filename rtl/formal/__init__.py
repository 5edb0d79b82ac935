"""What is proved of the control plane: properties, broken copies, and the solver."""
