"""Systems around the training: records of runs that others can query and repeat, and machines that train together."""
