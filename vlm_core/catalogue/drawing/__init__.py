"""Drawing of the sample catalogue's pictures: a pen, a camera, and one function per kind of product."""
