"""The best learning rate at several widths: `python -m protocol.transfer`."""
