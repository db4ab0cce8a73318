//! Sources of images to a bounded stream of cropped RGB images.
