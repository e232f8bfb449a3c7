"""The classes, by index."""

CLASSES = ("background", "Myo", "LV", "RV")
STRUCTURES = CLASSES[1:]
