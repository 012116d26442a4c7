"""The Control API's wire format: requests to bytes, bytes to rows or to errors. Pure."""
