"""The verbs of the command line, by what a person wants to do. Heavy imports happen inside the verbs."""
