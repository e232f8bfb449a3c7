"""Methods: what is learned. A file a method, each with `init_state`, `make_step` and `make_predict`."""
