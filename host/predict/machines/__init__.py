"""Digital machines: rates, measured and published, and what K-FAC's parts ask of them."""
