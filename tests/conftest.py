"""Settings that every test needs before anything is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
