"""uint8 pictures, (height, width, 3), of images, heatmaps and audits."""
