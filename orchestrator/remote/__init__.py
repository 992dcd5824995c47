"""Sweeps as Ray jobs: sent to a cluster, watched, stopped, brought home.

Read in this order: `address` (which cluster, and whether it may be talked to), `package` (what is sent), `submission` (what
is checked and asked for), `cluster` (Ray's Jobs API), `follow` (a job's log and its end), `fetch` (results), `listing` (what
`fetch` runs on the cluster).
"""
