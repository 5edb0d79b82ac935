"""Thermodynamic hardware: technologies, what a step asks of a unit, and what that costs."""
