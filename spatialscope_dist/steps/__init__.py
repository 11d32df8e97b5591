"""Steps: what a worker does for one unit — read from the store, call pure functions, write to the store.

Here are the steps too long for the file of their stage, and those that two callers share. They know paths,
options and arrays; the study, the ledger and the workers are the stages' business.

slide (`segment`, `segment-image`) · pixels (`ingest`, `segment-image`) · typing_fit → typing_list → typing_sweeps →
typing_cells (`identify`) · rehearsal (`decompose`) · section_view, truth (`report`)
"""
