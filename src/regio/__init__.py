"""regio: region-based object detection in PyTorch, from R-CNN to learned region features.

The modules, in the order data flows: `regio.data` reads images and annotations; `regio.backbones` and `regio.necks`
make feature maps; `regio.proposals` finds boxes; `regio.regions` makes a feature for each; `regio.heads` and
`regio.postprocess` turn features into detections; `regio.detector` is these in a row and `regio.systems` the
detectors of the literature; `regio.train` and `regio.evaluate` do what they say.
"""

__version__ = "0.1.0"
