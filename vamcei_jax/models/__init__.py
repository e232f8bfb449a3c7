"""Flax modules: pure functions of parameters, inputs and keys.

    network                                   class                file
    segmenter with Gaussian latents           VariationalUNet      unet.py
    student                                   UNet                 unet.py
    decoder of images (eq. 3)                 Decoder              decoder.py
    discriminator (eqs. 11–12)                Discriminator        discriminator.py
    image translation                         Translator,          translator.py
                                              PatchDiscriminator

The layers that they share are in layers.py, gradients that are tuned for CPUs in cpu_gradients.py.
"""
