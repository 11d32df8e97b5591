"""The engine: runs functions over units on Dask workers; knows no biology and no storage."""
