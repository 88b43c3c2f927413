"""The proxy: requests to jobs over streams of the fabric, with bodies byte for byte."""
