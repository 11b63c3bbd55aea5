"""Files packed into shards: tar as webdataset has them, and MosaicML's MDS; to the rest of the program, a folder of files."""
