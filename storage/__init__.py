"""Object stores: folders at `s3://` and `gs://`, and their copies on the local disk."""
