"""What every test shares: reproducible hypothesis runs, whatever the machine's speed."""

from hypothesis import settings

settings.register_profile("minitorch", deadline=None, derandomize=True)
settings.load_profile("minitorch")
