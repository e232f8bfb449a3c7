"""Methods: what is learned. One file per method, each with the same names.

    NETWORKS                        networks that the method trains, keys of `config.optimizer.rates`
    TERMS                           loss terms that it weighs, keys of `config.loss.weights`
    init_state(config, key)         state before the first step
    make_step(config, axis_name)    step(state, batch) -> (state, metrics), a pure function
    make_predict(config)            prediction with the averaged parameters of a state

A batch maps "source" and "target" to the arrays of each domain: "image" (B, H, W, 1) in [0, 1], "label" (B, H, W) with
class indices (source only), and "teacher" (B, H, W, K) with class probabilities (target only, for the student).
"""
