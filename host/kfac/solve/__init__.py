"""From Kronecker factors and gradients to a step: damping, methods, inverses, step length."""
