"""A sweep whose output is kept under a URL (file, s3, gs): it runs in a folder here, and a mirror sends what changes.

`location` reads and writes objects, `opened` is what the verbs use, `mirror` sends, `snapshot` says what and in which order,
`lease` keeps two drivers apart, `workspace` is the workers' side, on nodes that do not see the driver's folder.
"""
