// The stand-in for cuDNN.
