"""Prediction: trained networks, from a volume to a mask on the volume's grid."""
