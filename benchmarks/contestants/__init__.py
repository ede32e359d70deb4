"""Who can be measured by `ingot bench`, a file each; `measure.py` says what such a file has. Run by foreign interpreters too,
as the package `contestants`: standard library, NumPy and the contestant's own library only, and relative imports."""
