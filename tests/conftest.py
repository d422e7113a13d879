import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter then; it reads this when it is first imported, by a test.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
