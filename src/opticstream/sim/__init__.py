"""The phantom and the virtual rig: a microscope with known truth.

`phantom` is the tissue, `optics` what a beam sees of it, `instrument` the spectrometer, `stage` where tiles lie,
`tiles` one raw tile, `rig` a whole acquisition on the disk, `truth` what is stored beside it, `validate` compares.
Runtime code never imports this package, and it imports none of the reconstruction that it is there to judge.
"""
