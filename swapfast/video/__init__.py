"""Videos: frames with their time stamps in, the same frames with other pixels out, everything else as it was.

probe.py      what a video holds, and one line for what is none
pixels.py     planes of a decoded frame -> BGR, and changed pixels back into the planes (kernels.py)
reader.py     frames in order, upright, each with index and time stamp
encoding.py   --codec: encoder, pixel format and options
segments.py   encoded packets in small files, so that a killed run goes on
writer.py     frames -> segments -> one file, with the sound, subtitles and tags of the source

PyAV (FFmpeg in a wheel) is imported by these files alone; ``pip install swapfast[video]``.
"""
