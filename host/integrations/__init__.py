"""K-FAC in other people's training loops; a module for each, which needs that package alone."""
