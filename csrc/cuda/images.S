// The fat binaries of the kernels as data. -Wa,-I names the folder that they were compiled into.
        .section .rodata
.macro image name
        .global ffkern_image_\name
        .hidden ffkern_image_\name
        .balign 64
ffkern_image_\name:
        .incbin "\name\().fatbin"
.endm
        image layer_forward
        .section .note.GNU-stack, "", @progbits
