"""Faces out of pictures and videos: found, followed, aligned and written."""
