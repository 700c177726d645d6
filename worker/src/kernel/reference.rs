//! Every operation in plain burn tensors: the definition.
