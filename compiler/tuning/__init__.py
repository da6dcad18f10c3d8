"""What kernels take on this machine: the candidates of a layer, their measurement, and the database."""
