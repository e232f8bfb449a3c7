"""Flax modules: pure functions of parameters, inputs and keys.

    network                                     class                file
    segmenter with Gaussian latents             VariationalUNet      unet.py
    student                                     UNet                 unet.py
    image decoder of eq. 3                      Decoder              decoder.py
    discriminator of eqs. 11–12                 Discriminator        discriminator.py
    generator and discriminator of CycleGAN     Translator,          translator.py
                                                PatchDiscriminator
"""
