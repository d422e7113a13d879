"""Submissions: where they run (`targets`), for which CUDA (`torch_builds`), and the files they are made of.

`nnunet-deconver export-submission` copies these and fills in their `$names`; `inference.py` travels as it is.
"""
