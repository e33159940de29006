"""UPerNet on a pretrained feature pyramid."""
