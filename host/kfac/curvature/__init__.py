"""From passes of a network to its curvature: hooks, loss Hessians, layers, Kronecker factors."""
