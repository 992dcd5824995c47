"""Sweeps: the only package that imports Ray, Optuna and MLflow.

Read in this order: `config` (the YAML file), `plan` (what it leads to), `pipeline` (the whole job), `jobs` (its runs),
`search` (Ray Tune and Ray tasks), `searcher` and `study` (Optuna), `curves` (one training, many candidates), `halving` and
`scheduler` (early stopping), `ledger` (what happens to each run), `tracking` (MLflow), `front` (the result).
`remote` runs sweeps as jobs of a cluster.
"""
