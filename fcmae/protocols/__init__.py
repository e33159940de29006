"""Encoders under the protocols of `fcmae evaluate`: above training, which looks at features as it runs."""
