"""Random changes of training images: as other X-ray rooms make them, never as a disease would."""
