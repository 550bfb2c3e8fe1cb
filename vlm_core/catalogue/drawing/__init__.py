"""How the sample catalogue's pictures are drawn: a pen, a camera, and one function a kind of product."""
