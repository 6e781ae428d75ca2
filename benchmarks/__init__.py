"""The project's figures: `make bench`, or `python -m benchmarks NAME ...`. Each prints a table and writes
results/NAME.json.
"""
