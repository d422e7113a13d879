"""The files of a submission: `nnunet-deconver export-submission` copies them and fills in their `$names`.

`inference.py` travels as it is; nothing here imports it.
"""
