"""What training would cost on hardware that exists, and on hardware that does not."""

__all__: list[str] = []
