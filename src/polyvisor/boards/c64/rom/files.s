; Input and output by logical files, LOAD and SAVE.

*= $f000
; A message, from its place Y in messages, if messages are shown.
message:
        bit msgflg
        bpl 2f
1:      lda messages,y
        php
        and #$7f
        jsr $ffd2
        iny
        plp
        bpl 1b
2:      clc
        rts
messages:
m_error = 0
        .byte $0d
        .text "I/O ERROR ", $a3
m_searching = * - messages
        .byte $0d
        .text "SEARCHING", $a0
m_for = * - messages
        .text "FOR", $a0
m_loading = * - messages
        .byte $0d
        .text "LOADIN", $c7
m_saving = * - messages
        .byte $0d
        .text "SAVING", $a0
m_verifying = * - messages
        .byte $0d
        .text "VERIFYIN", $c7

; The name of the file.
printname:
        bit msgflg
        bpl 2f
        ldy #0
1:      cpy fnlen
        beq 2f
        lda (fnadr),y
        jsr $ffd2
        iny
        bne 1b
2:      rts

*= $f13e
getin:  lda dfltn
        bne chrin
        lda ndx
        beq 1f
        sei
        jmp takekey
1:      clc
        rts

*= $f157
chrin:  lda dfltn
        beq 2f
        cmp #3
        beq 1f
        lda status
        beq 3f
        lda #return             ; behind the end
        clc
        rts
3:      jmp acptr
1:      lda crsw
        bne 2f
        lda lnmx
        clc
        adc #1
        sta indx
        lda #3
        sta crsw
2:      jmp readline

*= $f1ca
chrout: pha
        lda dflto
        cmp #3
        bne 1f
        pla
        jmp printscreen
1:      pla
        jmp ciout

*= $f20e
chkin:  jsr lookup
        bne notopen
        jsr fetch
        lda fa
        beq 1f
        cmp #3
        beq 1f
        jsr talk
        lda sa
        jsr tksa
        bit status
        bmi notpresent
        lda fa
1:      sta dfltn
        clc
        rts

*= $f250
chkout: jsr lookup
        bne notopen
        jsr fetch
        lda fa
        beq notoutput
        cmp #3
        beq 1f
        jsr listen
        lda sa
        jsr second
        bit status
        bmi notpresent
        lda fa
1:      sta dflto
        clc
        rts

notopen:
        lda #3
        .byte $2c
notpresent:
        lda #5
        .byte $2c
notoutput:
        lda #7
        jmp error

*= $f291
close:  jsr lookupa
        bne 3f                  ; is not open: nothing to do
        txa
        pha
        jsr fetch
        lda fa
        cmp #4
        bcc 1f
        jsr closeserial
1:      pla
        tax
        dec ldtnd
        cpx ldtnd
        beq 3f
        ldy ldtnd               ; the last one takes its place
        lda lat,y
        sta lat,x
        lda fat,y
        sta fat,x
        lda sat,y
        sta sat,x
3:      clc
        rts

; Z: the logical file X (or A) is open, and X says where in the tables it is.
*= $f30f
lookup: lda #0
        sta status
        txa
lookupa:
        ldx ldtnd
1:      dex
        bmi 2f
        cmp lat,x
        bne 1b
2:      rts
*= $f31f
fetch:  lda lat,x
        sta la
        lda fat,x
        sta fa
        lda sat,x
        sta sa
        rts

*= $f32f
clall:  lda #0
        sta ldtnd
; clall goes on here.
*= $f333
clrchn: ldx #3
        cpx dflto
        bcs 1f
        jsr unlsn
1:      cpx dfltn
        bcs 2f
        jsr untlk
2:      stx dflto
        lda #0
        sta dfltn
        rts

*= $f34a
open:   ldx la
        beq notinput
        jsr lookup
        beq isopen
        ldx ldtnd
        cpx #10
        bcs toomany
        lda fa
        beq 1f
        cmp #3
        bcs 1f
        lda #5                  ; neither tape nor RS-232
        jmp error
1:      inc ldtnd
        lda la
        sta lat,x
        lda sa
        ora #$60
        sta sa
        sta sat,x
        lda fa
        sta fat,x
        cmp #4
        bcc 2f
        jsr openserial
        bcc 2f
        dec ldtnd               ; what could not be opened is not open
        rts
2:      clc
        rts

toomany:
        lda #1
        .byte $2c
isopen: lda #2
        .byte $2c
notfound:
        lda #4
        .byte $2c
notinput:
        lda #6
        .byte $2c
noname: lda #8
        .byte $2c
baddevice:
        lda #9
; Error A: shown if errors are, and returned with the carry.
error:  pha
        jsr $ffcc
        bit msgflg
        bvc 1f
        lda msgflg
        pha
        lda #$c0
        sta msgflg
        ldy #m_error
        jsr message
        pla
        sta msgflg
        pla
        pha
        ora #'0'
        jsr $ffd2
1:      pla
        sec
        rts

; Send the file's name to the device. Carry: there is no such device, A is the error.
openserial:
        lda sa
        bmi 3f
        ldy fnlen
        beq 3f
        lda #0
        sta status
        lda fa
        jsr listen
        lda sa
        ora #$f0
        jsr second
        bit status
        bpl 1f
        lda #5
        jmp error
1:      ldy #0
2:      lda (fnadr),y
        jsr ciout
        iny
        cpy fnlen
        bne 2b
        jsr unlsn
3:      clc
        rts

closeserial:
        bit sa
        bmi 1f
        lda fa
        jsr listen
        lda sa
        and #$0f
        ora #$e0
        jsr second
        jsr unlsn
1:      clc
        rts

*= $f49e
load:   stx memuss
        sty memuss+1
        jmp (iload)
*= $f4a5
doload: sta verck
        lda #0
        sta status
        lda fa
        cmp #4
        bcs 1f
        jmp baddevice
1:      ldy fnlen
        bne 2f
        jmp noname
2:      lda sa
        pha
        ldy #m_searching
        jsr message
        ldy #m_for
        jsr message
        jsr printname
        lda #$60
        sta sa
        jsr openserial
        bcs 8f
        lda fa
        jsr talk
        lda sa
        jsr tksa
        jsr acptr
        sta eal
        lda status
        and #2
        bne 7f
        jsr acptr
        sta eal+1
        pla
        bne 1f
        lda memuss              ; where the caller wants it
        sta eal
        lda memuss+1
        sta eal+1
1:      ldy #m_loading
        lda verck
        beq 2f
        ldy #m_verifying
2:      jsr message
        bit status
        bvs 6f                  ; an address and nothing else
3:      jsr $ffe1
        beq stopped
        jsr acptr
        tax
        lda status
        and #2
        bne 6f                  ; the rest cannot be read: status tells
        txa
        ldy #0
        cpy verck
        beq 4f
        cmp (eal),y
        beq 5f
        lda #$10
        jsr orstatus
        .byte $2c               ; what differs is not stored
4:      sta (eal),y
5:      inc eal
        bne 9f
        inc eal+1
9:      bit status
        bvc 3b
6:      jsr untlk
        jsr closeserial
        ldx eal
        ldy eal+1
        clc
        rts
7:      pla
        jsr untlk
        jsr closeserial
        jmp notfound
8:      tax
        pla
        txa
        sec
        rts

stopped:
        jsr untlk
endstopped:
        jsr closeserial
        lda #0
        sec
        rts

*= $f5dd
save:   stx eal
        sty eal+1
        tax
        lda 0,x
        sta stal
        lda 1,x
        sta stal+1
        jmp (isave)
*= $f5ed
dosave: lda fa
        cmp #4
        bcs 1f
        jmp baddevice
1:      ldy fnlen
        bne 2f
        jmp noname
2:      lda #$61
        sta sa
        jsr openserial
        bcs 7f
        ldy #m_saving
        jsr message
        jsr printname
        lda fa
        jsr listen
        lda sa
        jsr second
        lda stal
        sta sal
        jsr ciout
        lda stal+1
        sta sal+1
        jsr ciout
3:      lda sal
        cmp eal
        lda sal+1
        sbc eal+1
        bcs 6f
        ldy #0
        lda (sal),y
        jsr ciout
        jsr $ffe1
        bne 4f
        jsr unlsn
        jmp endstopped
4:      inc sal
        bne 3b
        inc sal+1
        bne 3b
6:      jsr unlsn
        jsr closeserial
        clc
7:      rts
